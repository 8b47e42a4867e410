"""Self-tuning networks: hyperparameters tuned while a model trains."""
