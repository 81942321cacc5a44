//! DCQCN's reaction point: a rate that falls with notifications, and recovers without them.
//!
//! ```text
//!           notification
//!   line ------------.                         .--- hyper increase: the target rises fast
//!   rate             |              .---------'
//!                    |        .----'  additive increase: the target rises slowly
//!                    |   .---'
//!                    '--'  fast recovery: half of the way back to the target, per step
//! ```
//!
//! The law is that of Zhu et al., "Congestion Control for Large-Scale RDMA Deployments" (SIGCOMM
//! 2015), with the clocks of the network cards: three of them run beside each other.
//!
//! | clock | starts | at each tick |
//! |---|---|---|
//! | alpha | first notification | alpha moves by `g` towards 1 if there was a notification since the last tick, else towards 0 |
//! | decrease | 1 ns behind alpha | if there was a notification since the last tick: cut the rate by alpha / 2, restart the increase |
//! | increase | each cut | a step up; so is each `increase_bytes` sent |
//!
//! Back at line rate the clocks stop and all is forgotten: the flow is a new one.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use super::after;
use crate::time::Time;

/// No clock ticks faster.
const INTERVAL_MIN: Duration = Duration::from_micros(1);

/// No average is slower.
const GAIN_INVERSE_MAX: u32 = 4096;

/// Below this share alpha is zero: a cut by it would change no rate that an integer can tell.
const ALPHA_MIN: f64 = 1.0 / (1u64 << 40) as f64;

/// Nearer to the line rate than this share of it, a rate is the line rate: half of the way per step
/// would never arrive. No step of increase adds less, so that every flow does arrive.
const RECOVERED: f64 = 1.0 / (1u64 << 20) as f64;

/// The parameters of a reaction point. Rates are in bytes of datagrams a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DcqcnParameters {
    /// The rate of the link: a queue pair starts with it and never exceeds it.
    pub line_rate: NonZeroU64,
    /// The rate below which it is not cut.
    pub rate_min: NonZeroU64,
    /// How often alpha, the estimate of congestion, is updated; at least 1 us.
    pub alpha_interval: Duration,
    /// How often the rate may be cut; at least 1 us.
    pub decrease_interval: Duration,
    /// How often the rate recovers a step; at least 1 us.
    pub increase_interval: Duration,
    /// After how many bytes it recovers a step besides; `None` for time alone.
    pub increase_bytes: Option<NonZeroU64>,
    /// 1 / g, where g is the weight of the newest observation in alpha; 4096 at most.
    pub gain_inverse: NonZeroU32,
    /// Steps of fast recovery before the target itself rises.
    pub fast_recovery_steps: u32,
    /// What a step of additive increase adds to the target.
    pub additive_increase: u64,
    /// What a step of hyper increase adds to the target.
    pub hyper_increase: u64,
    /// Forget the old target at every cut, also at one that follows another without a step up
    /// between them.
    pub clamp_target: bool,
}

impl DcqcnParameters {
    /// Parameters for a link of so many bytes a second, in proportion to the line rate.
    pub const fn new(line_rate: NonZeroU64) -> Self {
        let line = line_rate.get();
        let rate_min = match NonZeroU64::new(line / 1000) {
            Some(rate) => rate,
            None => NonZeroU64::MIN,
        };
        DcqcnParameters {
            line_rate,
            rate_min,
            alpha_interval: Duration::from_micros(50),
            decrease_interval: Duration::from_micros(50),
            increase_interval: Duration::from_micros(55),
            increase_bytes: None,
            gain_inverse: NonZeroU32::new(256).unwrap(),
            fast_recovery_steps: 1,
            additive_increase: line / 1000,
            hyper_increase: line / 500,
            clamp_target: false,
        }
    }
}

/// A reaction point.
///
/// All arithmetic is that of IEEE 754 without functions whose rounding is the platform's own, so a
/// run is the same everywhere.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Dcqcn {
    parameters: DcqcnParameters,
    rate: f64,
    target: f64,
    alpha: f64,
    /// The next ticks of the three clocks. A clock that would do nothing may lag behind.
    alpha_at: Option<Time>,
    decrease_at: Option<Time>,
    increase_at: Option<Time>,
    /// A notification came since the last tick of that clock.
    notified_alpha: bool,
    notified_decrease: bool,
    /// Steps up since the last cut, by time and by bytes.
    time_steps: u32,
    byte_steps: u32,
    bytes: u64,
}

impl Dcqcn {
    /// A reaction point at line rate.
    pub fn new(parameters: &DcqcnParameters) -> Self {
        let mut parameters = *parameters;
        for interval in [
            &mut parameters.alpha_interval,
            &mut parameters.decrease_interval,
            &mut parameters.increase_interval,
        ] {
            *interval = (*interval).max(INTERVAL_MIN);
        }
        let line = parameters.line_rate.get() as f64;
        Dcqcn {
            parameters,
            rate: line,
            target: line,
            alpha: 1.0,
            alpha_at: None,
            decrease_at: None,
            increase_at: None,
            notified_alpha: false,
            notified_decrease: false,
            time_steps: 0,
            byte_steps: 0,
            bytes: 0,
        }
    }

    /// The rate, in bytes a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The rate that it recovers towards, in bytes a second.
    pub fn target(&self) -> f64 {
        self.target
    }

    /// The estimate of congestion, from 0 to 1, as of the last event.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The rate, in whole bytes a second.
    pub fn rate_bytes_per_second(&self) -> NonZeroU64 {
        NonZeroU64::new(self.rate as u64).unwrap_or(NonZeroU64::MIN)
    }

    /// When [`on_timer`](Self::on_timer) will change the rate; `None` at rest.
    pub fn next_deadline(&self) -> Option<Time> {
        let decrease = self.decrease_at.filter(|_| self.notified_decrease);
        [decrease, self.increase_at].into_iter().flatten().min()
    }

    /// A notification arrived.
    pub fn on_cnp(&mut self, now: Time) {
        self.on_timer(now);
        self.notified_decrease = true;
        if self.decrease_at.is_some() {
            self.notified_alpha = true;
            return;
        }
        // The first one starts the clocks. It does not count for alpha, which starts at its highest;
        // and a cut goes by the alpha of its own time, so alpha ticks first.
        self.alpha_at = after(now, self.parameters.alpha_interval);
        self.decrease_at = after(now, self.parameters.decrease_interval + Duration::from_nanos(1));
    }

    /// So many bytes were sent.
    pub fn on_sent(&mut self, now: Time, bytes: u64) {
        self.on_timer(now);
        let Some(each) = self.parameters.increase_bytes.filter(|_| self.increase_at.is_some()) else {
            return;
        };
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= each.get() {
            self.bytes %= each;
            let rise = self.rise();
            self.byte_steps = self.byte_steps.saturating_add(1);
            self.increase(rise);
        }
    }

    /// Does what is due by now, each thing as of the time at which it was due.
    pub fn on_timer(&mut self, now: Time) {
        while let Some(at) = self.due(now) {
            if self.alpha_at == Some(at) {
                self.update_alpha(at);
            } else if self.decrease_at == Some(at) {
                self.decrease(at);
            } else {
                self.increase_at = after(at, self.parameters.increase_interval);
                let rise = self.rise();
                self.time_steps = self.time_steps.saturating_add(1);
                self.increase(rise);
            }
        }
    }

    /// The earliest tick by now that would do something.
    fn due(&mut self, now: Time) -> Option<Time> {
        let Dcqcn { parameters, alpha_at, decrease_at, .. } = self;
        if self.alpha == 0.0 && !self.notified_alpha {
            *alpha_at = skip(*alpha_at, parameters.alpha_interval, now);
        }
        if !self.notified_decrease {
            *decrease_at = skip(*decrease_at, parameters.decrease_interval, now);
        }
        [*alpha_at, *decrease_at, self.increase_at].into_iter().flatten().min().filter(|at| *at <= now)
    }

    fn update_alpha(&mut self, at: Time) {
        let g = 1.0 / f64::from(self.parameters.gain_inverse.get().min(GAIN_INVERSE_MAX));
        let observed = if self.notified_alpha { g } else { 0.0 };
        self.alpha = (1.0 - g) * self.alpha + observed;
        if self.alpha < ALPHA_MIN {
            self.alpha = 0.0;
        }
        self.notified_alpha = false;
        self.alpha_at = after(at, self.parameters.alpha_interval);
    }

    /// The rate falls, and recovers from here on.
    fn decrease(&mut self, at: Time) {
        self.decrease_at = after(at, self.parameters.decrease_interval);
        if !self.notified_decrease {
            return;
        }
        self.notified_decrease = false;
        if self.parameters.clamp_target || self.time_steps.max(self.byte_steps) > 0 {
            self.target = self.rate;
        }
        let floor = self.parameters.rate_min.min(self.parameters.line_rate).get() as f64;
        self.rate = (self.rate * (1.0 - self.alpha / 2.0)).max(floor);
        (self.time_steps, self.byte_steps, self.bytes) = (0, 0, 0);
        self.increase_at = after(at, self.parameters.increase_interval);
    }

    /// What the next step up adds to the target: nothing at first, then little, and much when both
    /// time and bytes say that recovery has lasted.
    fn rise(&self) -> f64 {
        let bytes_count = self.parameters.increase_bytes.is_some();
        let other = if bytes_count { self.byte_steps } else { self.time_steps };
        let [fewer, more] = [self.time_steps.min(other), self.time_steps.max(other)];
        let fast = self.parameters.fast_recovery_steps;
        let rise = match (more < fast, fewer > fast) {
            (true, _) => return 0.0,
            (false, false) => self.parameters.additive_increase,
            (false, true) => self.parameters.hyper_increase,
        };
        (rise as f64).max(self.parameters.line_rate.get() as f64 * RECOVERED)
    }

    /// A step up: half of the way to the target, which itself rises.
    fn increase(&mut self, rise: f64) {
        let line = self.parameters.line_rate.get() as f64;
        self.target = (self.target + rise).min(line);
        self.rate = self.rate / 2.0 + self.target / 2.0;
        // A cut that is due takes place first.
        if line - self.rate <= line * RECOVERED && !self.notified_decrease {
            *self = Dcqcn::new(&self.parameters);
        }
    }
}

/// The first tick after `now` of a clock that does nothing until then.
fn skip(at: Option<Time>, interval: Duration, now: Time) -> Option<Time> {
    let at = at?;
    if now < at {
        return Some(at);
    }
    let interval_ns = u64::try_from(interval.as_nanos()).ok()?;
    let ticks = (now - at).as_nanos() as u64 / interval_ns + 1;
    ticks.checked_mul(interval_ns).and_then(|ns| at.as_nanos().checked_add(ns)).map(Time::from_nanos)
}
