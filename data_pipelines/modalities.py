"""The sensors of pre-training: what RingMoE has experts of."""

# bands of a modality, as files have them; in the order of its experts
BANDS = {'opt': 3, 'sar_l1': 8, 'sar_l2': 1, 'ms': 4}
