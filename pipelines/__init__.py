"""Likeness: teach a diffusion model one face three ways, and measure which one looks like the person."""
