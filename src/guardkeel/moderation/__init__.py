"""Moderation with an ensemble of guards that learns from its reviewers whom to trust."""
