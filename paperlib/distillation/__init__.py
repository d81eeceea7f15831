"""Distillation from a teacher, directly and through assistants."""
