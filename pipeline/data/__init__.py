"""From (epoch, step) to a batch of uint8 images: order, decoding, augmentation, loading."""
