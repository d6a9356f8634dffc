"""What looks at an optimizer's state and never steps: the conflict, counts over a tensor, the summary of all."""
