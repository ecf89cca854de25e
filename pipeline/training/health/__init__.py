"""Whether training goes well: non-finite numbers, alarms on logged metrics, what is kept of them, and the way back."""
