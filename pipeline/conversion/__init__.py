"""Models from elsewhere, and to elsewhere: import, export, cards, publication on the hub."""
