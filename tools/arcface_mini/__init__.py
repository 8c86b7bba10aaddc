"""Building `models/arcface-mini`: data, network, training, evaluation, card."""
