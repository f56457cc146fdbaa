"""What leaves a dossier, in the formats of others."""
