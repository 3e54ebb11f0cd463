//! How long launches take on the device: by events in its stream, recorded while it is still busy with earlier work, so
//! that it never waits for the host.

use super::driver::Driver;
use super::launch::PlannedLaunch;
use super::planned::list;
use super::{CudaDevice, Device, Progress, StepGraph, StepId};
use crate::Result;
use crate::graph::ValueId;
use crate::metrics::summary::quantile;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaEvent, CudaStream};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// A launch of a step, and how long it takes: from the end of the launch before it to its own.
#[derive(Debug, Clone, Serialize)]
pub struct LaunchTime {
    #[serde(flatten)]
    pub launch: PlannedLaunch,
    pub seconds: f64,
}

/// The device is kept busy for so many times as long as the host takes to enqueue what is timed,
const BUSY: f64 = 2.0;
/// with so many replays of the step at most.
const MOST_REPLAYS: f64 = 200.0;

/// Points of time in the stream: events that are made once and recorded again and again.
pub struct Marks {
    events: Vec<CudaEvent>,
    recorded: usize,
}

impl Marks {
    fn new(driver: &Driver, count: usize) -> Result<Self> {
        let event = || driver.context.new_event(Some(CU_EVENT_DEFAULT)).map_err(|error| driver.error("events", error));
        Ok(Marks { events: (0..count).map(|_| event()).collect::<Result<_>>()?, recorded: 0 })
    }

    /// Marks this point of the stream.
    fn record(&mut self, driver: &Driver) -> Result<()> {
        self.recorded += 1;
        self.events[self.recorded - 1].record(&driver.stream).map_err(|error| driver.error("events", error))
    }

    /// Seconds from each mark to the next, once all is done; the marks can then be made anew.
    fn take(&mut self, driver: &Driver) -> Result<Vec<f64>> {
        driver.synchronize()?;
        let recorded = &self.events[..std::mem::take(&mut self.recorded)];
        let between = recorded.windows(2).map(|pair| pair[0].elapsed_ms(&pair[1]).map(|ms| f64::from(ms) / 1e3));
        between.collect::<std::result::Result<_, _>>().map_err(|error| driver.error("events", error))
    }
}

impl Driver {
    /// Marks this point of the stream, if launches are timed.
    pub fn mark(&mut self) -> Result<()> {
        let Some(mut marks) = self.marks.take() else { return Ok(()) };
        let recorded = marks.record(self);
        self.marks = Some(marks);
        recorded
    }
}

impl CudaDevice {
    /// The stream that all of the device's work goes through, for what is to be timed beside it.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.driver.stream
    }

    /// The address of a value's first element; it is another one after more was loaded.
    pub fn address(&self, step: StepId, value: ValueId) -> u64 {
        let (location, shape) = self.place(step, value);
        self.addresses().at(location, shape.storage, 0, false).address()
    }

    /// The launches of a step, in order.
    ///
    /// # Errors
    /// If a launch is too large.
    pub fn launches(&self, step: StepId) -> Result<Vec<PlannedLaunch>> {
        list(self.steps.get(step), &self.driver.description, self.addresses())
    }

    /// See [`Device::time_launches`].
    pub(super) fn timed_launches(&mut self, step: StepId, repeats: usize) -> Result<Vec<LaunchTime>> {
        self.copy_parameters()?;
        let launches = self.launches(step)?;
        let mut marks = Marks::new(&self.driver, launches.len() + 1)?;
        let mut samples = vec![Vec::with_capacity(repeats); launches.len()];
        let replays = self.replays(step, 1, |device| device.launch(step))?;
        for _ in 0..repeats {
            self.keep_busy(step, replays)?;
            marks.record(&self.driver)?;
            self.driver.marks = Some(marks);
            let launched = self.launch(step);
            marks = self.driver.marks.take().expect("they were put there above");
            launched?;
            let seconds = marks.take(&self.driver)?;
            assert_eq!(seconds.len(), samples.len(), "as many launches as were planned");
            samples.iter_mut().zip(seconds).for_each(|(sample, seconds)| sample.push(seconds));
        }
        let timed = launches.into_iter().zip(&mut samples);
        Ok(timed.map(|(launch, seconds)| LaunchTime { launch, seconds: quantile(seconds, 0.5) }).collect())
    }

    /// See [`Device::time_nodes`].
    pub(super) fn timed_nodes(&mut self, step: StepId, positions: &[usize], times: usize) -> Result<f64> {
        self.copy_parameters()?;
        let work = |device: &mut Self| device.launch_nodes(step, positions.iter().copied());
        let replays = self.replays(step, times, work)?;
        let mut marks = Marks::new(&self.driver, 2)?;
        self.keep_busy(step, replays)?;
        marks.record(&self.driver)?;
        (0..times).try_for_each(|_| work(self))?;
        marks.record(&self.driver)?;
        Ok(marks.take(&self.driver)?[0])
    }

    /// How many replays of the step keep the device busy until `work` is enqueued so many times.
    fn replays(&mut self, step: StepId, times: usize, work: impl Fn(&mut Self) -> Result<()>) -> Result<usize> {
        let replay = self.replay_seconds(step)?;
        let start = Instant::now();
        work(self)?;
        let enqueued = times as f64 * start.elapsed().as_secs_f64();
        self.driver.synchronize()?;
        Ok((BUSY * enqueued / replay).ceil().clamp(1.0, MOST_REPLAYS) as usize)
    }

    /// What a replay of the step takes, measured once.
    fn replay_seconds(&mut self, step: StepId) -> Result<f64> {
        while !matches!(self.progress[step.0], Progress::Replay(_)) {
            self.run(step)?; // loads the kernels, then captures
        }
        if let Progress::Replay(StepGraph { seconds: Some(seconds), .. }) = self.progress[step.0] {
            return Ok(seconds);
        }
        self.driver.synchronize()?;
        let start = Instant::now();
        self.run(step)?;
        self.driver.synchronize()?;
        let measured = start.elapsed().as_secs_f64();
        if let Progress::Replay(StepGraph { seconds, .. }) = &mut self.progress[step.0] {
            *seconds = Some(measured);
        }
        Ok(measured)
    }

    fn keep_busy(&mut self, step: StepId, replays: usize) -> Result<()> {
        (0..replays).try_for_each(|_| self.run(step))
    }
}
