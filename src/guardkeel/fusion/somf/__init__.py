"""SOMF (arXiv:2405.09055): a mask over the fine-tuning's changes, learned so that what is fused is safe again."""
