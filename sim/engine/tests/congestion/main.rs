//! Congestion control: its laws, and queue pairs that obey them.

mod bottleneck;
mod dcqcn;
mod delay;
mod fairness;
mod notification;
mod one;
