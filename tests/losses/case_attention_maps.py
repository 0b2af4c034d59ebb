"""A student and a teacher of two layers with two heads and four tokens; changes reach for the further layers."""

TAPS = {f"layers.{i}": (2, 4, 4) for i in range(4)} | {f"others.{i}": (2, 4, 4) for i in range(4)}
OPTIONS = {
    "student_taps": ["layers.{}"],
    "teacher_taps": ["layers.{}"],
    "student_layers": 2,
    "teacher_layers": 2,
    "softmax": True,  # what the tests draw are no probabilities
    "distance": "kl",
}
CHANGES = {
    "student_taps": ["others.{}"],
    "teacher_taps": ["others.{}"],
    "student_layers": 1,
    "teacher_layers": 4,
    "layer_map": [1, 0],
    "distance": "mse",
    "heads": "mean",
}
DIGITS = {
    "student_taps": ["layers.{}.attention"],
    "teacher_taps": ["layers.{}.attention"],
    "student_layers": 2,
    "teacher_layers": 2,
}
