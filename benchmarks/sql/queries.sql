-- server_facts --
-- The server's version and every setting that is not PostgreSQL's own default.
SELECT name, current_setting(name) AS value
FROM pg_settings
WHERE source IN ('command line', 'configuration file') OR name = 'server_version'
ORDER BY name;
