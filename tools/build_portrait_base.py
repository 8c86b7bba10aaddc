"""Rebuild `models/portrait-128` from folders of portraits: align -> autoencoder -> text and denoiser -> export -> card.

    python tools/build_portrait_base.py --portraits DIR DIR2 --recogniser reid.onnx --start-from models/portrait-128 \
        --stages unet,fade,refine,export,evaluate --unet-budget-s 7200

Every stage saves a checkpoint in `--work` and continues from it; you can kill it at any time and start it again.
Budgets are seconds of CPU time, all runs together. `--data portraits.npz` starts from a cache of aligned crops; then
another machine needs only the repository and this file. Without the stage `vae` the autoencoder of `--start-from` is
used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STAGES = ("vae", "unet", "fade", "refine", "export", "evaluate")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, nargs="+", help="folders with a table and its photos")
    parser.add_argument("--data", type=Path, help="packed cache of aligned crops (made from --portraits if missing)")
    parser.add_argument("--work", type=Path, default=ROOT / ".build" / "portrait-128", help="checkpoints")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "portrait-128")
    parser.add_argument(
        "--recogniser", type=Path, help="face-reidentification-retail-0095 as ONNX: identity loss, probes"
    )
    parser.add_argument("--vae-budget-s", type=float, default=3600.0, help="for the autoencoder")
    parser.add_argument("--unet-budget-s", type=float, default=4 * 3600.0, help="for text and denoiser")
    parser.add_argument("--fade-budget-s", type=float, default=1200.0, help="for a copy of them with a falling rate")
    parser.add_argument("--refine-budget-s", type=float, default=1800.0, help="for the decoder alone")
    parser.add_argument("--identity-weight", type=float, default=0.1, help="of the descriptor's term while denoising")
    parser.add_argument("--start-from", type=Path, help="exported model to continue from instead of from noise")
    parser.add_argument("--people", type=Path, help="folder of people (people.csv) for the in-the-wild figures")
    parser.add_argument(
        "--measure", type=Path, help="folder with portraits2.csv, whose `evaluate` rows are measured on"
    )
    parser.add_argument("--face-models", type=Path, help="InsightFace root with buffalo_sc, for the ArcFace figure")
    parser.add_argument(
        "--stages",
        default="vae,unet,fade,export,evaluate",
        help=f"comma-separated, of {', '.join(STAGES)}; refine is optional",
    )
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--device", default=None, help="cpu or cuda; found by itself")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    import torch

    from tools.portrait_base import autoencoder, card, data, denoiser, evaluate, probes, variants

    stages = options.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        print(f"Unknown stage: {', '.join(sorted(unknown))}. There are {', '.join(STAGES)}.", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    work: Path = options.work
    packed = options.data or work / "portraits.npz"
    if not packed.is_file():
        if options.portraits is None:
            print("Give --portraits DIR or an existing --data FILE.", file=sys.stderr)
            return 2
        data.pack(options.portraits, packed)
    portraits = data.load(packed)
    if {"vae", "unet", "fade", "refine"} & set(stages):
        if not (work / "variants.npz").is_file():
            if options.recogniser is None:
                print("Give --recogniser FILE: variants are made with it.", file=sys.stderr)
                return 2
            completed = probes.completed(portraits, options.recogniser)
            variants.save(variants.make(portraits, completed), work / "variants.npz")
        made = variants.load(work / "variants.npz")
    if "vae" in stages:
        autoencoder.train(
            portraits,
            made,
            work,
            budget_s=options.vae_budget_s,
            recogniser=options.recogniser,
            device=device,
            start_from=options.start_from,
        )
    for stage, budget_s in (("unet", options.unet_budget_s), ("fade", options.fade_budget_s)):
        if stage in stages:
            denoiser.train(
                autoencoder.finished(work, options.start_from, portraits).to(device),
                made,
                work,
                budget_s=budget_s,
                device=device,
                start_from=options.start_from,
                identity_weight=options.identity_weight,
                fade=stage == "fade",
            )
    if "refine" in stages:
        autoencoder.refine(
            autoencoder.finished(work, options.start_from, portraits),
            made,
            work,
            budget_s=options.refine_budget_s,
            recogniser=options.recogniser,
            device=device,
        )
    if "export" in stages:
        vae = autoencoder.finished(work, options.start_from, portraits, refined=True)
        model, tokenizer = denoiser.averaged(work, vae.config.latent_channels)
        denoiser.export(vae, model, tokenizer, options.out)
    if "evaluate" in stages:
        figures, pictures = evaluate.everything(
            options.out,
            portraits,
            people=options.people,
            measure=options.measure,
            packs=options.face_models,
            recogniser=options.recogniser,
        )
        command = " ".join(["python", "tools/build_portrait_base.py", *_portable(sys.argv[1:])])
        card.write(options.out, figures, pictures, portraits, command=command, work=work)
        print("\n".join(f"{name}: {value:.4g}" for name, value in figures.items()))
    return 0


def _portable(arguments: list[str]) -> list[str]:
    """The arguments for the model card: of each path only the last part."""
    return [Path(a).name if "/" in a else a for a in arguments]


if __name__ == "__main__":
    sys.exit(main())
