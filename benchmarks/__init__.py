"""Scripts that time us beside others in one run; RESULTS.md has what they found."""
