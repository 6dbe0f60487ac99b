"""`run --trace`: a line for each trapped call of one program. Others are not concerned, and pay nothing for it."""
