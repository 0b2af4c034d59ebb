"""A student and a teacher of two layers; changes reach for the further ones."""

TAPS = {f"layers.{i}": (4, 6) for i in range(4)} | {f"others.{i}": (4, 6) for i in range(4)}
OPTIONS = {
    "student_taps": ["layers.{}"],
    "teacher_taps": ["layers.{}"],
    "student_layers": 2,
    "teacher_layers": 2,
}
CHANGES = {
    "student_taps": ["others.{}"],
    "teacher_taps": ["others.{}"],
    "student_layers": 1,
    "teacher_layers": 4,
    "layer_map": [1, 0],
    "distance": "cosine",
}
DIGITS = {"student_taps": ["layers.{}"], "teacher_taps": ["layers.{}"], "student_layers": 2, "teacher_layers": 2}
