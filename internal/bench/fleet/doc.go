// Package fleet simulates the agents of a fleet that return after an outage. Each agent is an [enroll.Agent] with a
// credential directory of its own. It renews or recovers its certificate at a real server. [Maker] makes the
// directories with certificates of the age that they have after the outage, so that nothing waits for the outage
// itself. [Run] runs agents in a process of its own. [Evaluate] compares when they got their certificates with the
// earliest possible times.
package fleet
