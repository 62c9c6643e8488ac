"""Models and GPUs: models.yaml, gpus.yaml, config.json, safetensors headers and GGUF in, frozen `Model` and `Gpu` out."""
