"""What several tests share: small models, tokenizers, trainings, layouts of inputs, scripts for two processes."""
