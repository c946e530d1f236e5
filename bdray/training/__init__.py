"""Training one stage: batches, augmentation, the loop, evaluation."""
