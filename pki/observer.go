package pki

// StatusObserver is notified of changes of status after they are durable and before their caller has an answer: so a
// responder knows every change before a relying party can ask about it. It is safe for concurrent use and does not block.
// It may be notified of a change twice, late or out of order: the Version of a status decides which of two is newer. It
// keeps nothing of the slice that it is given.
type StatusObserver interface {
	Apply(changes ...StatusChange)
}

// StatusObservers notifies all its elements, in order.
type StatusObservers []StatusObserver

// Apply implements [StatusObserver].
func (all StatusObservers) Apply(changes ...StatusChange) {
	for _, o := range all {
		o.Apply(changes...)
	}
}

// StatusObserverFunc is a function that is a [StatusObserver].
type StatusObserverFunc func(changes []StatusChange)

// Apply implements [StatusObserver].
func (f StatusObserverFunc) Apply(changes ...StatusChange) { f(changes) }
