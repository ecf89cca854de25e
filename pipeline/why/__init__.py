"""`zero2r1 why RUN@STAGE`: what makes the symptom of a kept batch go away, with one thing changed at a time."""
