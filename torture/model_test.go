package torture

import (
	"fmt"
	"maps"
	"slices"

	"github.com/anishathalye/porcupine"

	"github.com/brevet-pki/brevet/pki"
)

// Two kinds of objects have to look as if every call took effect at one moment between its beginning and its end:
//
//   - the records of one identity, which are transactions of the store: enrolling, renewing, suspending, resuming, revoking,
//     and reading any of it;
//   - what the responder says of one certificate. It is told of a change after the record and before the caller, so that a
//     change is two operations, record and tell, in this order and in the same interval. A restart tells everything.
//
// A call without an answer may have taken effect, up to the end of its process, or not.

// verb is what an operation does.
type verb string

const (
	enrolls  verb = "enroll"
	renews   verb = "renew"
	suspends verb = "suspend"
	resumes  verb = "resume"
	revokes  verb = "revoke"
	reads    verb = "read the record of"
	looks    verb = "read the identity"
	tells    verb = "tell the responder of"
	asks     verb = "ask OCSP about"
	restarts verb = "restart"
)

// input is a call.
type input struct {
	verb   verb
	serial string // the certificate that it is about; the predecessor, of a renewal
	token  string // of an enrollment
	order  int    // numbers suspensions, resumptions and revocations; and what tells of them
}

// output is its answer.
type output struct {
	lost  bool // there was none
	rule  pki.Rule
	got   string // the serial number of an issued certificate
	state int    // that was read
}

func describe(in, out any) string {
	i, o := in.(input), out.(output)
	subject := short(i.serial)
	if i.order > 0 {
		subject = fmt.Sprintf("%s #%d", subject, i.order)
	}
	switch {
	case o.lost:
		return fmt.Sprintf("%s %s: no answer", i.verb, subject)
	case o.rule != "":
		return fmt.Sprintf("%s %s: refused by %s", i.verb, subject, o.rule)
	case o.got != "":
		return fmt.Sprintf("%s %s: %s", i.verb, subject, short(o.got))
	default:
		return fmt.Sprintf("%s %s: %d", i.verb, subject, o.state)
	}
}

// ledger is the records of one identity.
type ledger struct {
	state   int // 1 registered, 2 enrolled, 3 suspended
	resumes int
	spent   map[string]bool
	states  map[string]int  // of certificates
	renewed map[string]bool // certificates that have a successor
}

const (
	registered = 1
	enrolled   = 2
	suspended  = 3
)

func (l ledger) clone() ledger {
	l.spent, l.states, l.renewed = maps.Clone(l.spent), maps.Clone(l.states), maps.Clone(l.renewed)
	return l
}

func (l ledger) equal(o ledger) bool {
	return l.state == o.state && l.resumes == o.resumes && maps.Equal(l.spent, o.spent) && maps.Equal(l.states, o.states) && maps.Equal(l.renewed, o.renewed)
}

// step returns the ledgers that an operation may lead to.
func (l ledger) step(i input, o output) []any {
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
	case i.verb == reads && o.state != l.states[i.serial], i.verb == looks && o.state != l.state:
		return nil
	}
	after := l.clone()
	if !after.apply(i, o) {
		return nil
	}
	return []any{after}
}

// apply carries out an operation, where the rules let it.
func (l *ledger) apply(i input, o output) bool {
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

func (l *ledger) change(from, to int) {
	for serial, state := range l.states {
		if state == from {
			l.states[serial] = to
		}
	}
}

// refuses reports whether a refusal tells the truth. What decides about a renewal is read one after the other, and the
// responder has a say: of that the other model knows.
func (l ledger) refuses(i input, rule pki.Rule) bool {
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

func ledgerModel() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any {
			return []any{ledger{state: registered, spent: map[string]bool{}, states: map[string]int{}, renewed: map[string]bool{}}}
		},
		Step:              func(state, in, out any) []any { return state.(ledger).step(in.(input), out.(output)) },
		Equal:             func(a, b any) bool { return a.(ledger).equal(b.(ledger)) },
		DescribeOperation: describe,
		DescribeState: func(state any) string {
			l := state.(ledger)
			text := fmt.Sprintf("identity %d", l.state)
			for _, serial := range slices.Sorted(maps.Keys(l.states)) {
				text += fmt.Sprintf(", %s %d", short(serial), l.states[serial])
			}
			return text
		},
	}
	return m.ToModel()
}

// said is a status and its version.
type said struct{ state, version int }

// subject is one certificate: its record, and what the responder was told.
type subject struct {
	record, told said
	orders       map[int]said // what recorded orders have to tell
}

func (s subject) equal(o subject) bool {
	return s.record == o.record && s.told == o.told && maps.Equal(s.orders, o.orders)
}

// step returns what an operation may lead to.
func (s subject) step(i input, o output) []any {
	after := s
	after.orders = maps.Clone(s.orders)
	switch i.verb {
	case enrolls, renews: // the one that issued it
		after.record, after.told = said{good, 1}, said{good, 1}
	case suspends:
		after.order(i.order, good, hold)
	case resumes:
		after.order(i.order, hold, good)
	case revokes:
		after.order(i.order, s.record.state, revoked)
	case tells:
		if _, recorded := s.orders[i.order]; !recorded && !o.lost {
			return nil
		}
		after.hear(i.order)
	case restarts:
		after.told = s.record
	case asks:
		if o.state != s.told.state {
			return nil
		}
	}
	if o.lost {
		return []any{s, after}
	}
	return []any{after}
}

func (s *subject) order(number, from, to int) {
	if s.record.state == from && from != to {
		s.record = said{to, s.record.version + 1}
	}
	s.orders[number] = s.record
}

func (s *subject) hear(number int) {
	if news := s.orders[number]; news.version > s.told.version {
		s.told = news
	}
	delete(s.orders, number)
}

func subjectModel() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init:              func() []any { return []any{subject{orders: map[int]said{}}} },
		Step:              func(state, in, out any) []any { return state.(subject).step(in.(input), out.(output)) },
		Equal:             func(a, b any) bool { return a.(subject).equal(b.(subject)) },
		DescribeOperation: describe,
		DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
	}
	return m.ToModel()
}
