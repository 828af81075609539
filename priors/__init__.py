"""Priors over grids of codes, and the samplers that draw from them."""
