"""`make gpu`: tests and measurements on a card that is there for ten minutes, of which nothing may be lost."""
