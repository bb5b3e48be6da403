"""Classify dermoscopic images of skin lesions, fast and honestly, with fastai."""
