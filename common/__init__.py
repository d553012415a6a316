"""What the five services share; it never imports one of them."""
