package pki

import "fmt"

// IdentityState is the state of an identity, from registered to retired.
type IdentityState uint8

// A new identity is registered. With its first certificate it becomes enrolled. It can be suspended and resumed. The
// state retired cannot be left.
const (
	Registered IdentityState = iota + 1
	Enrolled
	Suspended
	Retired
)

var stateNames = [...]string{Registered: "registered", Enrolled: "enrolled", Suspended: "suspended", Retired: "retired"}

// String returns the state's name.
func (s IdentityState) String() string {
	if s < Registered || s > Retired {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return stateNames[s]
}

// ParseIdentityState returns the state with a name.
func ParseIdentityState(text string) (IdentityState, error) {
	for s := Registered; s <= Retired; s++ {
		if stateNames[s] == text {
			return s, nil
		}
	}
	return 0, fmt.Errorf("%q is not an identity's state: use registered, enrolled, suspended or retired", text)
}

// Kind is the kind of an identity. It determines which profiles and RPCs the identity may use.
type Kind uint8

// Operators create identities of devices and workloads. The identities of operators, of the server and of its
// responders are reserved.
const (
	Device Kind = iota + 1
	Workload
	Operator
	Server
	VA
)

var kindNames = [...]string{Device: "device", Workload: "workload", Operator: "operator", Server: "server", VA: "va"}

// String returns the kind's name.
func (k Kind) String() string {
	if k < Device || k > VA {
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
	return kindNames[k]
}

// ParseKind returns the kind with a name.
func ParseKind(text string) (Kind, error) {
	for k := Device; k <= VA; k++ {
		if kindNames[k] == text {
			return k, nil
		}
	}
	return 0, fmt.Errorf("%q is not a kind of identity: use device, workload or operator", text)
}
