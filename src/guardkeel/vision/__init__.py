"""Images: what vision-language adaptation does to a guard's safety, and requests made of several pictures."""
