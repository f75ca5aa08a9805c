"""Contrastive training of LoRA experts."""
