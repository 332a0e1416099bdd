"""The small shipped model: a closed world of questions, and the script that trains on it."""
