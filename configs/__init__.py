"""Data, not code: reusable pieces that recipes name (`model/*.yaml`, `accelerate/*.yaml`)."""
