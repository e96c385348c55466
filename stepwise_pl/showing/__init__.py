"""The page of `demo`: trained models to ask, a board of their answers, and a folder for Spaces. It uses both wings."""
