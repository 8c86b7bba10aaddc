"""The parts of `tools/build_portrait_base.py`: data, autoencoder, denoiser, evaluation."""
