"""The loop around fusing: many settings, each scored as an audit would, the front of what they trade, one choice."""
