"""What modules are made of. Images are [B, H, W, C]."""
