"""Distillation from a teacher, directly and through assistants (Section 3.2)."""
