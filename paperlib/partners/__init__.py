"""Block-wise partner learning (BPL): each k x k convolution trains beside a second one, and both are fused afterwards.

X. Zhang et al., *Block-Wise Partner Learning for Model Compression*, IEEE TNNLS 2023, doi 10.1109/TNNLS.2023.3306512.
"""
