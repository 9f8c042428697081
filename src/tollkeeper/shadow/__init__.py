"""Changes prove themselves: experiments, their statistics, and the gate before a deployment."""
