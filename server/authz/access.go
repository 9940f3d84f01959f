package authz

import (
	"maps"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

// Callers is a set of callers.
type Callers uint8

// The sets of callers.
const (
	Nobody   Callers = iota // the zero value: denies an operation that is not in the table
	Anybody                 // any caller, even without a certificate
	Identity                // any caller with a valid certificate
	// Renewing is any caller with a valid certificate, or with a certificate that is revoked as superseded. The holder of
	// a superseded certificate may have lost the response to its renewal, and repeats the request.
	Renewing
	Operators // callers with a valid operator's certificate, who need a permission
)

// Access is the set of callers that may call an operation. The zero value is the empty set.
type Access struct {
	Callers Callers
	// Permission is what Operators need. For other callers it is zero. The roles of an operator grant it
	// ([pki.Role.Permits]).
	Permission pki.Permission
	// ReadsStatuses means that the response depends on statuses in memory, although Anybody may call.
	ReadsStatuses bool
}

// access maps each operation to the callers that may call it, whichever protocol they use. A test fails if the server
// serves an operation that is not in this table.
//
// CreateIdentity, UpdateIdentity, SuspendIdentity, ResumeIdentity, RetireIdentity and CreateToken need another
// permission for an operator's identity. The store checks it with the change (package store/rules).
var access = map[Operation]Access{
	Enroll:            {Callers: Anybody}, // evidence in the request authenticates the caller
	CreateChallenge:   {Callers: Anybody}, // clients call it before Enroll, without a certificate
	Renew:             {Callers: Renewing},
	GetTrustBundle:    {Callers: Identity},
	GetRenewalInfo:    {Callers: Identity},
	IssueCertificates: {Callers: Operators, Permission: pki.MayIssue},

	GetESTCACertificates: {Callers: Anybody}, // clients trust the response only as they trust the connection
	GetESTAttributes:     {Callers: Anybody}, // clients call it before simpleenroll
	RefuseESTOperation:   {Callers: Anybody}, // so that every client gets the hint

	CreateIdentity:  {Callers: Operators, Permission: pki.MayRegister},
	GetIdentity:     {Callers: Operators, Permission: pki.MayRead},
	ListIdentities:  {Callers: Operators, Permission: pki.MayRead},
	UpdateIdentity:  {Callers: Operators, Permission: pki.MayRegister},
	SuspendIdentity: {Callers: Operators, Permission: pki.MayRevoke},
	ResumeIdentity:  {Callers: Operators, Permission: pki.MayRevoke},
	RetireIdentity:  {Callers: Operators, Permission: pki.MayRevoke},
	CreateToken:     {Callers: Operators, Permission: pki.MayRegister},
	ListTokens:      {Callers: Operators, Permission: pki.MayRead},
	RevokeToken:     {Callers: Operators, Permission: pki.MayRevoke},

	GetCertificate:      {Callers: Operators, Permission: pki.MayRead},
	ListCertificates:    {Callers: Operators, Permission: pki.MayRead},
	GetCertificateChain: {Callers: Identity},
	RevokeCertificate:   {Callers: Operators, Permission: pki.MayRevoke},
	HoldCertificate:     {Callers: Operators, Permission: pki.MayRevoke},
	UnholdCertificate:   {Callers: Operators, Permission: pki.MayRevoke},

	CreateBulkRevocation: {Callers: Operators, Permission: pki.MayRevoke},
	GetBulkRevocation:    {Callers: Operators, Permission: pki.MayRead},
	ListBulkRevocations:  {Callers: Operators, Permission: pki.MayRead},
	RevokeCompromisedKey: {Callers: Anybody}, // a signature in the request proves possession of the key

	// Who may revoke certificates in bulk may also have them renewed, which harms less.
	StartRotation: {Callers: Operators, Permission: pki.MayRevoke},
	GetRotation:   {Callers: Operators, Permission: pki.MayRead},
	ListRotations: {Callers: Operators, Permission: pki.MayRead},
	StopRotation:  {Callers: Operators, Permission: pki.MayRevoke},

	ListCRLs:  {Callers: Operators, Permission: pki.MayRead},
	ImportCRL: {Callers: Operators, Permission: pki.MayAdminister},

	ApplyPolicy:   {Callers: Operators, Permission: pki.MayAdminister},
	GetPolicy:     {Callers: Operators, Permission: pki.MayAudit},
	ListPolicies:  {Callers: Operators, Permission: pki.MayAudit},
	ExplainPolicy: {Callers: Operators, Permission: pki.MayAudit},

	CreateExternalKey: {Callers: Operators, Permission: pki.MayRegister},
	ListExternalKeys:  {Callers: Operators, Permission: pki.MayRead},
	RevokeExternalKey: {Callers: Operators, Permission: pki.MayRevoke},
	ListAccounts:      {Callers: Operators, Permission: pki.MayRead},
	RevokeAccount:     {Callers: Operators, Permission: pki.MayRevoke},

	ListEntries: {Callers: Operators, Permission: pki.MayAudit},
	GetHead:     {Callers: Operators, Permission: pki.MayAudit},

	GetStats: {Callers: Operators, Permission: pki.MayAudit},

	// The signature of the request authenticates the client, except for the directory and renewalInfo, which are public.
	ACMEDirectory:   {Callers: Anybody},
	ACMEAccount:     {Callers: Anybody},
	ACMEOrder:       {Callers: Anybody},
	ACMEFinalize:    {Callers: Anybody},
	ACMECertificate: {Callers: Anybody},
	ACMERevoke:      {Callers: Anybody},
	ACMERenewalInfo: {Callers: Anybody, ReadsStatuses: true},

	// Unknown callers may not use reflection: its responses are large, and gRPC buffers what a client does not read.
	ReflectServices: {Callers: Operators, Permission: pki.MayRead},

	CheckHealth: {Callers: Anybody},
	ListHealth:  {Callers: Anybody},
	WatchHealth: {Callers: Anybody},
}

// AccessOf returns who may call an operation. For an operation that is not in the table it returns the zero Access.
func AccessOf(op Operation) Access { return access[op] }

// Operations returns every operation in the table, sorted by name.
func Operations() []Operation { return slices.Sorted(maps.Keys(access)) }

// ErrNoOperation is the refusal of an operation that is not in the table.
var ErrNoOperation error = pki.Refuse(pki.RuleMethod,
	"call an RPC in proto/brevet/v1, or a server of a version that has it", "this server has no such RPC")
