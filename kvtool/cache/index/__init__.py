"""Which cached page holds which tokens: two indexes behind one interface, chosen by name."""
