"""Evaluation of image models on prepared test sets, and its reports."""
