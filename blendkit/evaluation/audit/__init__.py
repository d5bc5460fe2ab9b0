"""What a judge can be trusted with: audits against people's labels, corrected win rates, style, panels that are weighed, and what quality costs."""
