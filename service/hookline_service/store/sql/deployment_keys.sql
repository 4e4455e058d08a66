-- Keys of the deployment itself, sealed.

-- name: offer
-- The first one counts: of several nodes that start at once all read the same.
INSERT INTO deployment_keys (purpose, sealed) VALUES ($1, $2) ON CONFLICT (purpose) DO NOTHING

-- name: read
SELECT sealed FROM deployment_keys WHERE purpose = $1
