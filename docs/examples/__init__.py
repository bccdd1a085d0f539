"""Extensions of ten lines, as docs/extending.md shows them; the tests run them."""
