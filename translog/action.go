package translog

import (
	"slices"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Action names the change or request that an entry records.
type Action string

// The actions. Entries contain the number of each in brevet.v1.Action. Neither names nor numbers ever change.
const (
	CAInstalled           Action = "ca.installed"
	CARetired             Action = "ca.retired" // the CA issues nothing from now on, or the root is not trusted
	CARemoved             Action = "ca.removed" // no status of the CA is served from now on
	IdentityRegistered    Action = "identity.registered"
	IdentityUpdated       Action = "identity.updated"
	IdentitySuspended     Action = "identity.suspended"
	IdentityResumed       Action = "identity.resumed"
	IdentityRetired       Action = "identity.retired"
	IdentityReplaced      Action = "identity.replaced"
	TokenCreated          Action = "token.created"
	TokenBound            Action = "token.bound"
	TokenRevoked          Action = "token.revoked" // one token, or all that an identity created
	CertificateIssued     Action = "certificate.issued"
	CertificateAbandoned  Action = "certificate.abandoned" // reserved or signed, never delivered, revoked
	CertificateRevoked    Action = "certificate.revoked"
	CertificateHeld       Action = "certificate.held"
	CertificateUnheld     Action = "certificate.unheld"
	CRLPublished          Action = "crl.published"
	RequestRefused        Action = "request.refused"
	RecordsExpired        Action = "records.expired"         // records of expired certificates were removed from the store
	BulkRevocationCreated Action = "bulk_revocation.created" // later entries contain the changes of its certificates
	BulkRevocationCounted Action = "bulk_revocation.counted"
	CRLNumberTaken        Action = "crl_number.taken" // the number is never used again
	// DistributionPointsRecorded is logged before a certificate contains the distribution points.
	DistributionPointsRecorded Action = "distribution_points.recorded"
	PolicyApplied              Action = "policy.applied" // a new revision of the policy decides from now on

	ACMEExternalKeyCreated Action = "acme_external_key.created"
	ACMEExternalKeyRevoked Action = "acme_external_key.revoked" // one with its account, or the unused ones of a creator
	ACMEAccountCreated     Action = "acme_account.created"      // and its external key was used up
	ACMEAccountKeyChanged  Action = "acme_account_key.changed"
	ACMEAccountDeactivated Action = "acme_account.deactivated" // by its holder
	ACMEAccountRevoked     Action = "acme_account.revoked"     // by an operator; it has no external key
	RotationStarted        Action = "rotation.started"
	RotationStopped        Action = "rotation.stopped"
	RotationCompleted      Action = "rotation.completed" // none of its certificates is due any more
	LogRestored            Action = "log.restored"       // the store was restored from a backup
	RestoreAccepted        Action = "restore.accepted"
)

// actions maps numbers to actions.
var actions = [...]Action{
	brevetv1.Action_ACTION_CA_INSTALLED:            CAInstalled,
	brevetv1.Action_ACTION_IDENTITY_REGISTERED:     IdentityRegistered,
	brevetv1.Action_ACTION_IDENTITY_UPDATED:        IdentityUpdated,
	brevetv1.Action_ACTION_IDENTITY_SUSPENDED:      IdentitySuspended,
	brevetv1.Action_ACTION_IDENTITY_RESUMED:        IdentityResumed,
	brevetv1.Action_ACTION_IDENTITY_RETIRED:        IdentityRetired,
	brevetv1.Action_ACTION_IDENTITY_REPLACED:       IdentityReplaced,
	brevetv1.Action_ACTION_TOKEN_CREATED:           TokenCreated,
	brevetv1.Action_ACTION_TOKEN_BOUND:             TokenBound,
	brevetv1.Action_ACTION_CERTIFICATE_ISSUED:      CertificateIssued,
	brevetv1.Action_ACTION_CERTIFICATE_ABANDONED:   CertificateAbandoned,
	brevetv1.Action_ACTION_CERTIFICATE_REVOKED:     CertificateRevoked,
	brevetv1.Action_ACTION_CERTIFICATE_HELD:        CertificateHeld,
	brevetv1.Action_ACTION_CERTIFICATE_UNHELD:      CertificateUnheld,
	brevetv1.Action_ACTION_CRL_PUBLISHED:           CRLPublished,
	brevetv1.Action_ACTION_REQUEST_REFUSED:         RequestRefused,
	brevetv1.Action_ACTION_RECORDS_EXPIRED:         RecordsExpired,
	brevetv1.Action_ACTION_BULK_REVOCATION_CREATED: BulkRevocationCreated,
	brevetv1.Action_ACTION_TOKEN_REVOKED:           TokenRevoked,
	brevetv1.Action_ACTION_CA_RETIRED:              CARetired,
	brevetv1.Action_ACTION_CA_REMOVED:              CARemoved,
	brevetv1.Action_ACTION_BULK_REVOCATION_COUNTED: BulkRevocationCounted,
	brevetv1.Action_ACTION_CRL_NUMBER_TAKEN:        CRLNumberTaken,

	brevetv1.Action_ACTION_DISTRIBUTION_POINTS_RECORDED: DistributionPointsRecorded,
	brevetv1.Action_ACTION_POLICY_APPLIED:               PolicyApplied,
	brevetv1.Action_ACTION_ACME_EXTERNAL_KEY_CREATED:    ACMEExternalKeyCreated,
	brevetv1.Action_ACTION_ACME_EXTERNAL_KEY_REVOKED:    ACMEExternalKeyRevoked,
	brevetv1.Action_ACTION_ACME_ACCOUNT_CREATED:         ACMEAccountCreated,
	brevetv1.Action_ACTION_ACME_ACCOUNT_KEY_CHANGED:     ACMEAccountKeyChanged,
	brevetv1.Action_ACTION_ACME_ACCOUNT_DEACTIVATED:     ACMEAccountDeactivated,
	brevetv1.Action_ACTION_ACME_ACCOUNT_REVOKED:         ACMEAccountRevoked,
	brevetv1.Action_ACTION_ROTATION_STARTED:             RotationStarted,
	brevetv1.Action_ACTION_ROTATION_STOPPED:             RotationStopped,
	brevetv1.Action_ACTION_ROTATION_COMPLETED:           RotationCompleted,
	brevetv1.Action_ACTION_LOG_RESTORED:                 LogRestored,
	brevetv1.Action_ACTION_RESTORE_ACCEPTED:             RestoreAccepted,
}

// number returns an action's number, and false if the action is unknown.
func (a Action) number() (brevetv1.Action, bool) {
	n := slices.Index(actions[:], a)
	return brevetv1.Action(n), n > 0 //nolint:gosec // an index into actions
}

// actionOf returns the action with the given number, and false if there is none.
func actionOf(n brevetv1.Action) (Action, bool) {
	if n <= 0 || int(n) >= len(actions) {
		return "", false
	}
	return actions[n], true
}
