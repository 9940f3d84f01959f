package authz

import (
	"maps"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

// Access is a set of callers that may call an operation.
type Access uint8

// The sets of callers.
const (
	Nobody   Access = iota // the zero value: denies an operation that is not in the table
	Anybody                // any caller, even without a certificate
	Identity               // any caller with a valid certificate
	// Renewing is any caller with a valid certificate, or with a certificate that is revoked as superseded. The holder of
	// a superseded certificate may have lost the response to its renewal, and repeats the request.
	Renewing
	Operators // callers with a valid operator's certificate
)

// access maps each operation to the callers that may call it, whichever protocol they use. A test fails if the server
// serves an operation that is not in this table.
var access = map[Operation]Access{
	Enroll:            Anybody, // evidence in the request authenticates the caller
	CreateChallenge:   Anybody, // clients call it before Enroll, without a certificate
	Renew:             Renewing,
	GetTrustBundle:    Identity,
	IssueCertificates: Operators,

	CreateIdentity:  Operators,
	GetIdentity:     Operators,
	ListIdentities:  Operators,
	UpdateIdentity:  Operators,
	SuspendIdentity: Operators,
	ResumeIdentity:  Operators,
	RetireIdentity:  Operators,
	CreateToken:     Operators,
	ListTokens:      Operators,
	RevokeToken:     Operators,

	GetCertificate:      Operators,
	ListCertificates:    Operators,
	GetCertificateChain: Identity,
	RevokeCertificate:   Operators,
	HoldCertificate:     Operators,
	UnholdCertificate:   Operators,

	CreateBulkRevocation: Operators,
	GetBulkRevocation:    Operators,
	ListBulkRevocations:  Operators,
	RevokeCompromisedKey: Anybody, // a signature in the request proves possession of the key

	ListCRLs:  Operators,
	ImportCRL: Operators,

	ApplyPolicy:   Operators,
	GetPolicy:     Operators,
	ListPolicies:  Operators,
	ExplainPolicy: Operators,

	ListEntries: Operators,
	GetHead:     Operators,

	GetStats: Operators,

	// Unknown callers may not use reflection: its responses are large, and gRPC buffers what a client does not read.
	ReflectServices: Operators,

	CheckHealth: Anybody,
	ListHealth:  Anybody,
	WatchHealth: Anybody,
}

// AccessOf returns the callers that may call an operation. For an operation that is not in the table it returns Nobody.
func AccessOf(op Operation) Access { return access[op] }

// Operations returns every operation in the table, sorted by name.
func Operations() []Operation { return slices.Sorted(maps.Keys(access)) }

// ErrNoOperation is the refusal of an operation that is not in the table.
var ErrNoOperation error = pki.Refuse(pki.RuleMethod,
	"call an RPC in proto/brevet/v1, or a server of a version that has it", "this server has no such RPC")
