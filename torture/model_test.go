package torture

import (
	"fmt"
	"maps"
	"slices"

	"github.com/anishathalye/porcupine"

	"github.com/brevet-pki/brevet/pki"
)

// Two kinds of objects must be linearizable: every call must look as if it took effect at one moment between its start
// and its end.
//
//   - The records of one identity, which the store changes in transactions: enrolling, renewing, suspending, resuming,
//     revoking, and reading them.
//   - The OCSP status of one certificate at one server. The server notifies its responder after it has written the record
//     and before the caller gets a response, and the responders of other servers read it later. So a change is two
//     operations: the record in the interval of the call, and the moment by which the responder knows it. After a restart,
//     the responder has read all records.
//
// A call whose response was lost may have taken effect until its process ended, or not at all.

// A verb is the type of an operation.
type verb string

const (
	enrolls          verb = "enroll"
	renews           verb = "renew"
	suspends         verb = "suspend"
	resumes          verb = "resume"
	revokes          verb = "revoke"
	readsCertificate verb = "read the record of"
	readsIdentity    verb = "read the identity"
	notifies         verb = "the responder knows"
	queries          verb = "query OCSP about"
	restarts         verb = "restart"
)

// An input is the arguments of an operation.
type input struct {
	verb   verb
	serial string // of the certificate; for a renewal, of its predecessor
	token  string // for an enrollment
	server string // name of the server that responded
	change int    // number of a suspension, resumption or revocation, and of its notification
}

// An output is the result of an operation.
type output struct {
	lost  bool // the response was lost
	rule  pki.Rule
	got   string // the serial number of an issued certificate
	state int    // the state that was read, if the operation reads one
}

// describe formats an operation for the visualization.
func describe(in, out any) string {
	i, o := in.(input), out.(output)
	subject := abbreviate(i.serial)
	if i.change > 0 {
		subject = fmt.Sprintf("%s #%d", subject, i.change)
	}
	switch {
	case o.lost:
		return fmt.Sprintf("%s %s: response lost", i.verb, subject)
	case o.rule != "":
		return fmt.Sprintf("%s %s: refused by %s", i.verb, subject, o.rule)
	case o.got != "":
		return fmt.Sprintf("%s %s: %s", i.verb, subject, abbreviate(o.got))
	default:
		return fmt.Sprintf("%s %s: %d", i.verb, subject, o.state)
	}
}

// identityModel is the model state of one identity's records.
type identityModel struct {
	state   int // 1 registered, 2 enrolled, 3 suspended
	resumes int
	spent   map[string]bool
	states  map[string]int  // by serial number
	renewed map[string]bool // serial numbers of certificates that have been renewed
}

const (
	registered = 1
	enrolled   = 2
	suspended  = 3
)

func (l identityModel) clone() identityModel {
	l.spent, l.states, l.renewed = maps.Clone(l.spent), maps.Clone(l.states), maps.Clone(l.renewed)
	return l
}

func (l identityModel) equal(o identityModel) bool {
	return l.state == o.state && l.resumes == o.resumes && maps.Equal(l.spent, o.spent) && maps.Equal(l.states, o.states) && maps.Equal(l.renewed, o.renewed)
}

// step returns the possible states after an operation, or none if its result is wrong.
func (l identityModel) step(i input, o output) []any {
	switch {
	case o.lost:
		after := l.clone()
		if !after.apply(i, o) {
			return []any{l}
		}
		return []any{l, after}
	case o.rule != "":
		if l.refuses(i, o.rule) {
			return []any{l}
		}
		return nil
	case i.verb == readsCertificate && o.state != l.states[i.serial], i.verb == readsIdentity && o.state != l.state:
		return nil
	}
	after := l.clone()
	if !after.apply(i, o) {
		return nil
	}
	return []any{after}
}

// apply carries out an operation, and reports whether the rules allow it.
func (l *identityModel) apply(i input, o output) bool {
	switch i.verb {
	case enrolls:
		if l.state != registered || l.spent[i.token] {
			return false
		}
		l.state, l.spent[i.token] = enrolled, true
		l.states[o.got] = good
	case renews:
		if l.state != enrolled || l.states[i.serial] != good || l.renewed[i.serial] {
			return false
		}
		l.renewed[i.serial] = true
		l.states[o.got] = good
	case suspends:
		if l.state != suspended {
			l.state, l.resumes = suspended, l.state
		}
		l.change(good, hold)
	case resumes:
		if l.state != suspended {
			return false
		}
		l.state = l.resumes
		l.change(hold, good)
	case revokes:
		l.states[i.serial] = revoked
	}
	return true
}

func (l *identityModel) change(from, to int) {
	for serial, state := range l.states {
		if state == from {
			l.states[serial] = to
		}
	}
}

// refuses reports whether a refusal is correct in this state. A renewal depends on several reads and on the responder,
// which the other model covers. So refuses accepts most refusals of renewals.
func (l identityModel) refuses(i input, rule pki.Rule) bool {
	switch {
	case i.verb == resumes && rule == pki.RuleIdentityState:
		return l.state != suspended
	case rule == pki.RuleIdentityState:
		return l.state == suspended
	case rule == pki.RuleAlreadyEnrolled:
		return l.state != registered
	case rule == pki.RuleRenewalKeyConflict:
		return l.renewed[i.serial]
	default:
		return true
	}
}

func newIdentityModel() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any {
			return []any{identityModel{state: registered, spent: map[string]bool{}, states: map[string]int{}, renewed: map[string]bool{}}}
		},
		Step:              func(state, in, out any) []any { return state.(identityModel).step(in.(input), out.(output)) },
		Equal:             func(a, b any) bool { return a.(identityModel).equal(b.(identityModel)) },
		DescribeOperation: describe,
		DescribeState: func(state any) string {
			l := state.(identityModel)
			text := fmt.Sprintf("identity %d", l.state)
			for _, serial := range slices.Sorted(maps.Keys(l.states)) {
				text += fmt.Sprintf(", %s %d", abbreviate(serial), l.states[serial])
			}
			return text
		},
	}
	return m.ToModel()
}

// ocspModel is the model state of one certificate: its record, and what the responder of a server knows of it.
type ocspModel struct {
	states  []int       // of the record: the newest one last, and the oldest one that the responder may know first
	pending map[int]int // by number of a change: the index of the state after it, until the responder must know it
}

func (s ocspModel) equal(o ocspModel) bool {
	return slices.Equal(s.states, o.states) && maps.Equal(s.pending, o.pending)
}

// step returns the possible states after an operation, or none if its result is wrong.
func (s ocspModel) step(i input, o output) []any {
	after := ocspModel{slices.Clone(s.states), maps.Clone(s.pending)}
	switch i.verb {
	case enrolls, renews: // the call that issued this certificate
		after.states = append(after.states, good)
	case suspends:
		after.recordChange(i, o, good, hold)
	case resumes:
		after.recordChange(i, o, hold, good)
	case revokes:
		after.recordChange(i, o, 0, revoked)
	case notifies:
		state, recorded := s.pending[i.change]
		if !recorded {
			return nil
		}
		delete(after.pending, i.change)
		after.learn(state)
	case restarts:
		after.learn(len(s.states) - 1)
	case queries: // of the states that the response can be about, the oldest one excludes the least
		state := slices.Index(s.states, o.state)
		if state < 0 {
			return nil
		}
		after.learn(state)
	}
	if o.lost {
		return []any{s, after}
	}
	return []any{after}
}

// recordChange changes the record from a state to another one. from is zero for any state.
func (s *ocspModel) recordChange(i input, o output, from, to int) {
	if last := len(s.states) - 1; last >= 0 && s.states[last] != to && s.states[last] != revoked && (from == 0 || s.states[last] == from) {
		s.states = append(s.states, to)
	}
	if !o.lost { // otherwise there is no time at which the responder must know it
		s.pending[i.change] = max(0, len(s.states)-1)
	}
}

// learn forgets the states before one that the responder knows.
func (s *ocspModel) learn(state int) {
	if state <= 0 {
		return
	}
	s.states = s.states[state:]
	for number, of := range s.pending {
		s.pending[number] = max(0, of-state)
	}
}

func newOCSPModel() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init:              func() []any { return []any{ocspModel{pending: map[int]int{}}} },
		Step:              func(state, in, out any) []any { return state.(ocspModel).step(in.(input), out.(output)) },
		Equal:             func(a, b any) bool { return a.(ocspModel).equal(b.(ocspModel)) },
		DescribeOperation: describe,
		DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
	}
	return m.ToModel()
}
