//! Queues of work: streams in which it waits in order, and events that tie one stream's order to another's.
//!
//! Nothing here runs by itself. A caller says which [`Point`] must be reached, and is handed piece after piece of work: what lies
//! before that point in its stream, and of other streams what an event demands, and no more. So work that lacks an event is found
//! out, as it runs too late or too early.

use std::collections::{BTreeMap, VecDeque};

/// A place in a stream: after its first `count` steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The stream's handle.
    pub stream: u64,
    /// Steps from the stream's beginning.
    pub count: u64,
}

/// What an event stands for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Event {
    /// Its device.
    pub device: usize,
    /// The place recorded last; none before the first time.
    pub point: Option<Point>,
    /// Whether it takes the time when it is passed.
    pub timed: bool,
}

/// Streams and events.
#[derive(Debug)]
pub struct Queues<W> {
    streams: BTreeMap<u64, Stream<W>>,
    events: BTreeMap<u64, Event>,
}

#[derive(Debug)]
struct Stream<W> {
    device: usize,
    steps: VecDeque<Step<W>>,
    done: u64,
}

#[derive(Debug)]
enum Step<W> {
    Work(W),
    Wait(Point),
}

impl<W> Default for Queues<W> {
    fn default() -> Self {
        Self { streams: BTreeMap::new(), events: BTreeMap::new() }
    }
}

impl<W> Queues<W> {
    /// A new stream of a device.
    pub fn open(&mut self, stream: u64, device: usize) {
        self.streams.insert(stream, Stream { device, steps: VecDeque::new(), done: 0 });
    }

    /// Ends a stream, which is to be empty.
    pub fn close(&mut self, stream: u64) {
        self.streams.remove(&stream);
    }

    /// The device of a stream; none when there is no such stream.
    pub fn device(&self, stream: u64) -> Option<usize> {
        self.streams.get(&stream).map(|stream| stream.device)
    }

    /// The streams of a device.
    pub fn of_device(&self, device: usize) -> Vec<u64> {
        self.streams.iter().filter(|(_, stream)| stream.device == device).map(|(handle, _)| *handle).collect()
    }

    /// Streams in which something waits.
    pub fn busy(&self) -> Vec<u64> {
        self.streams.iter().filter(|(_, stream)| !stream.steps.is_empty()).map(|(handle, _)| *handle).collect()
    }

    /// All work that waits, in no order across streams.
    pub fn waiting(&self) -> impl Iterator<Item = &W> {
        self.streams.values().flat_map(|stream| &stream.steps).filter_map(|step| match step {
            Step::Work(work) => Some(work),
            Step::Wait(_) => None,
        })
    }

    /// A new event.
    pub fn create(&mut self, event: u64, device: usize, timed: bool) {
        self.events.insert(event, Event { device, point: None, timed });
    }

    /// Ends all streams and events of a device.
    pub fn close_device(&mut self, device: usize) {
        self.streams.retain(|_, stream| stream.device != device);
        self.events.retain(|_, event| event.device != device);
    }

    /// Ends an event; what waits for it still does. False when there is none.
    pub fn destroy(&mut self, event: u64) -> bool {
        self.events.remove(&event).is_some()
    }

    /// What an event stands for now; none when there is no such event.
    pub fn event(&self, event: u64) -> Option<Event> {
        self.events.get(&event).copied()
    }

    /// Lays work at the end of a stream.
    pub fn push(&mut self, stream: u64, work: W) {
        self.step(stream, Step::Work(work));
    }

    /// Makes what is queued in a stream from now on wait for a point.
    pub fn wait(&mut self, stream: u64, point: Point) {
        if point.stream != stream && !self.reached(point) {
            self.step(stream, Step::Wait(point));
        }
    }

    /// Makes an event stand for what is queued in a stream now.
    pub fn record(&mut self, event: u64, stream: u64) {
        let end = self.end(stream);
        if let Some(event) = self.events.get_mut(&event) {
            event.point = Some(end);
        }
    }

    fn step(&mut self, stream: u64, step: Step<W>) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.steps.push_back(step);
        }
    }

    /// The point behind all that is queued in a stream.
    pub fn end(&self, stream: u64) -> Point {
        let count = self.streams.get(&stream).map_or(0, |stream| stream.done + stream.steps.len() as u64);
        Point { stream, count }
    }

    /// Whether all work before a point was handed out.
    pub fn reached(&self, point: Point) -> bool {
        self.streams.get(&point.stream).is_none_or(|stream| stream.done >= point.count)
    }

    /// The work to be done next so that a point is reached; none when it is.
    pub fn next(&mut self, goal: Point) -> Option<(u64, W)> {
        let mut point = goal;
        while !self.reached(goal) {
            let waits_for = match self.streams.get(&point.stream)?.steps.front()? {
                Step::Wait(other) if !self.reached(*other) => Some(*other),
                _ => None,
            };
            if let Some(other) = waits_for {
                point = other;
                continue;
            }
            if let Some(work) = self.pop(point.stream) {
                return Some((point.stream, work));
            }
            point = goal;
        }
        None
    }

    /// The next work of a stream; none when it has none or waits for another stream.
    pub fn ready(&mut self, stream: u64) -> Option<W> {
        loop {
            match self.streams.get(&stream)?.steps.front()? {
                Step::Wait(point) if !self.reached(*point) => return None,
                Step::Wait(_) => drop(self.pop(stream)),
                Step::Work(_) => return self.pop(stream),
            }
        }
    }

    fn pop(&mut self, stream: u64) -> Option<W> {
        let stream = self.streams.get_mut(&stream)?;
        let step = stream.steps.pop_front()?;
        stream.done += 1;
        match step {
            Step::Work(work) => Some(work),
            Step::Wait(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Queues<&'static str> {
        let mut queues = Queues::default();
        queues.open(1, 0);
        queues.open(2, 0);
        queues.create(9, 0, false);
        queues
    }

    fn all(queues: &mut Queues<&'static str>, goal: Point) -> Vec<&'static str> {
        std::iter::from_fn(|| queues.next(goal)).map(|(_, work)| work).collect()
    }

    #[test]
    fn nothing_of_another_stream_runs_without_an_event() {
        let mut queues = two();
        queues.push(2, "copy");
        queues.push(1, "kernel");
        let end = queues.end(1);
        assert_eq!(all(&mut queues, end), ["kernel"]);
        assert_eq!(queues.busy(), [2]);
    }

    #[test]
    fn an_event_brings_what_was_queued_before_it_and_no_more() {
        let mut queues = two();
        queues.push(2, "first");
        queues.record(9, 2);
        queues.push(2, "second");
        queues.push(1, "kernel");
        queues.wait(1, queues.event(9).unwrap().point.unwrap());
        queues.push(1, "last");
        let end = queues.end(1);
        assert_eq!(all(&mut queues, end), ["kernel", "first", "last"]);
        assert_eq!(queues.ready(2), Some("second"));
    }

    #[test]
    fn a_point_within_a_stream_leaves_what_follows() {
        let mut queues = two();
        queues.push(1, "a");
        queues.record(9, 1);
        queues.push(1, "b");
        let point = queues.event(9).unwrap().point.unwrap();
        assert_eq!(all(&mut queues, point), ["a"]);
        assert!(queues.reached(point) && !queues.reached(queues.end(1)));
    }

    #[test]
    fn a_stream_that_waits_is_not_ready() {
        let mut queues = two();
        queues.push(2, "first");
        let end = queues.end(2);
        queues.wait(1, end);
        queues.push(1, "kernel");
        assert_eq!(queues.ready(1), None);
        assert_eq!(queues.ready(2), Some("first"));
        assert_eq!(queues.ready(1), Some("kernel"));
    }

    #[test]
    fn streams_that_wait_for_each_other_in_turns_come_to_an_end() {
        let mut queues = two();
        for _ in 0..3 {
            queues.push(1, "kernel");
            let end = queues.end(1);
            queues.wait(2, end);
            queues.push(2, "copy");
            let end = queues.end(2);
            queues.wait(1, end);
        }
        let end = queues.end(1);
        assert_eq!(all(&mut queues, end), ["kernel", "copy", "kernel", "copy", "kernel", "copy"]);
    }
}
