"""Queries, keys and values side by side: five tokens, two heads."""

TAPS = {"wide": (5, 24), "small": (5, 12)}
OPTIONS = {"student_taps": ["wide"], "teacher_taps": ["wide"], "heads": 2}
CHANGES = {"student_taps": ["small"], "teacher_taps": ["small"], "heads": 4, "relations": ["qq", "kk", "vv"]}
DIGITS = {"student_taps": ["layers.1.qkv"], "teacher_taps": ["layers.1.qkv"], "heads": 2}
