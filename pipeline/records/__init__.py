"""What stages write down beside their artifacts, in the form in which others read it."""
